import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewspect.callbacks.files import MAX_BYTES, Names, folder_atomic, safe_name, write_atomic


def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_atomic(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomic(path, broken)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_is_whole_or_absent(tmp_path, empty):
    place = tmp_path / "sub" / "set"
    if empty:
        place.mkdir(parents=True)

    def fill(more):
        with folder_atomic(place) as work:
            (work / "first").write_text("1")
            more(work)

    with pytest.raises(ZeroDivisionError):
        fill(lambda work: 1 / 0)
    assert place.exists() == empty
    assert [p.name for p in tmp_path.rglob("*")] == ["sub"] + empty * ["set"]
    fill(lambda work: (work / "second").write_text("2"))
    assert sorted(p.name for p in place.iterdir()) == ["first", "second"]
    assert [p.name for p in place.parent.iterdir()] == ["set"]


@given(st.text(max_size=300))
def test_safe_names_are_one_short_component(text):
    name = safe_name(text)
    assert name not in {"", ".", ".."} and "/" not in name and "\\" not in name
    assert len(name.encode()) <= MAX_BYTES
    assert safe_name(name) == name


def test_plain_names_are_kept_and_dangerous_ones_changed():
    assert safe_name("part_017 (front) ä") == "part_017 (front) ä"
    assert safe_name("../../etc/passwd") == "_.._.._etc_passwd"
    assert safe_name("con") == "_con"
    assert safe_name("x" * 200) != safe_name("x" * 201)


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "b", "a-"]), st.integers(0, 30)), max_size=40))
def test_names_never_collide_and_are_stable(requests):
    names, given = Names(), {}
    for text, origin in requests:
        given.setdefault((text, origin), names(text, f"{text}/{origin}"))
        assert names(text, f"{text}/{origin}") == given[text, origin]
    assert len({name.casefold() for name in given.values()}) == len(given)


def test_processes_that_do_not_know_each_other_agree():
    first, second = Names(always=True), Names(always=True)
    second("a", "other/a")
    assert first("a", "one/a") == second("a", "one/a") != second("a", "other/a")

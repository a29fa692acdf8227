"""Where the features of an experiment come from: two feature files."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewspect.data import features
from fewspect.data.feature_episodes import FeatureEpisodes, Task, make_task
from fewspect.data.features import Token
from fewspect.data.sampling import Rule
from fewspect.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """How episodes of features are made.

    Attributes:
        samplings: Episodes per product: so many draws of supports, all asked about every query.
        sampling: ``drawn`` (from the seed, groups apart) or ``published`` (MVREC's rule; its samplings are 0
            to 4).
        token: ``class``, ``patches``, ``both`` or ``all`` tokens of the store.
        unknown: Classes that are not supported: the right answer for them is "unknown".
    """

    samplings: int = 30
    sampling: Rule = "drawn"
    token: Token = "class"
    unknown: Sequence[str] = ()


class FeatureSource:
    """Tasks of feature files, read once.

    Args:
        files: Paths of the support's and the queries' file; None where they are not given.
        options: See ``FeatureOptions``.
    """

    def __init__(self, files: tuple[str | None, str | None], options: FeatureOptions) -> None:
        self.files, self.options = files, options
        self._tasks: list[Task] = []

    def tasks(self) -> list[Task]:
        """One task per product.

        Raises:
            UserError: A file is missing, damaged, or does not belong to the other.
        """
        if not self._tasks:
            support, query = self.files
            if support is None or query is None:
                raise UserError(
                    "Features were asked for.", "Set data.support and data.query to feature files."
                )
            known, asked = features.read(support), features.read(query)
            self._tasks = [make_task(known, asked, unknown=self.options.unknown, where=(support, query))]
        return self._tasks

    def episodes(self, part: str, shot: int | None, seed: int) -> FeatureEpisodes:
        """Episodes of one part: for ``train`` and ``val`` the whole pool, asked about itself."""
        tasks = self.tasks()
        if part in ("train", "val"):
            pools = [Task(t.support, t.support, t.support.label + 1) for t in tasks]
            return FeatureEpisodes(pools, shot=None, token=self.options.token)
        o = self.options
        return FeatureEpisodes(
            tasks, shot=shot, samplings=o.samplings, rule=o.sampling, token=o.token, seed=seed
        )

"""GCCS: zero- and few-shot recognition with supports that are made from class texts."""

"""Feature extractors behind one contract (``base.Backbone``)."""

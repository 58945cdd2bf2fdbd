"""Forebay: the nouns and plumbing that the five services share."""

"""The steps of the verbs, one module each."""

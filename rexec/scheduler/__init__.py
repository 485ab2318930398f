"""Which worker runs which action when: pure rules, and a thin asynchronous shell around them."""

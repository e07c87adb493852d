"""Other approximate methods, one module each, in code of our own: functions f(q, k, v, *, is_causal, **hyper) -> out.

`docs/methods.md` has their formulas, what each is recalled from, and why no package is called for them.
"""

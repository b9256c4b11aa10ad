"""Reference optima: what the best open-loop control costs from each held-out initial state.

`cache` needs neither CasADi nor a solver; `ipopt` imports CasADi.
"""

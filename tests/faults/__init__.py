"""The table of faults a run must survive or end cleanly from: `make faults`.

One module a kind of fault; each fault is a function that injects it and says what it saw.
"""

"""Small faults, planted one at a time: does a test fail for each?

faults.toml   the faults, as data
before.json   which test found each at 288170f, before the suite was cut; "" where none did
after.json    which test found each after that
fault         reads them, plants them, refuses those that no longer fit
probe         tells from inside a running process that a statement is reached
probes        puts a probe before the statement that each fault changes
plugin        pytest's side: which test ran how long, and which failed
scratch       a copy of the tree in which faults are planted
reach         one run of the whole suite: it must pass, and tells which tests reach which fault
trial         plants a fault and runs the tests that reach it
"""

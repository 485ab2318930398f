"""The worker: takes leases from the scheduler, runs their commands, and puts the outputs into the store.

`rexec.worker.start` brings one up; nothing is imported here, because the server reads `rexec.worker.settings` too.
"""

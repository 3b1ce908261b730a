"""The real code of several machines on one simulated NFS server, in one seeded thread of control.

Everything of the daemon runs as it is: loop, workers, heartbeat, finisher, sweeper, retention. What
is simulated is the world: the server and the clients' caches (fileserver, nfsclient), time and
threads (turns, standins), power cuts and people (fate). The witness sees every change on the
server's disk and holds it against the promises; planted takes the protocol's rules away one by
one. A failure prints its seed, which is the whole history, and the last calls.
"""

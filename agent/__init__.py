"""One service per host: leases slots and ports, runs the tasks of attempts, streams what they say.

The core (``machine``, with ``domain``, ``events``, ``instructions`` and ``outcome``) decides: events
in, instructions out, no I/O, no clock. ``runtime`` does what it says, through ``zygote`` and
``processes`` (forks, signals, reaping), ``attempts``, ``event_log`` and ``spool`` (files), ``leases``
(slots, ports) and ``streams`` (events on their way to a coordinator). ``service`` and ``convert``
alone know the protocol. Tasks belong to the machine's attempts; everything that the agent knows of
running work stands in the attempt directories as well.
"""

"""The coordinator: searches, places trials on agents, keeps the truth, shows the user.

Decisions are pure (``machine``, ``placement``, ``search``, ``stages``): events in, instructions
out. Effects are at the edge (``runtime``, ``agent_link``, ``store``, ``service``, ``cli``).
Never imports tensorflow, the agent, or ``nhop_models`` (but for its plain ``contract`` module).
"""

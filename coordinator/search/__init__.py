"""Search spaces, and the algorithms that propose points of them.

Everything here is pure: a proposal is a function of its arguments, the generator included.
"""

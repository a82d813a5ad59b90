"""What runs inside a task process: the zygote that forks it, the task's frame, PS and Worker, training.

``tf.compat.v1`` is used here and nowhere else.
"""

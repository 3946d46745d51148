"""What runs inside the sandbox's processes: the lock, the plain format of values, and the three roles.

Loaded there as the package ``inside``, by the standard library alone and without the course around it.
"""

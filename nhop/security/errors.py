"""What can be wrong with certificates; apart, since those who only ask load nothing else."""


class CertificateError(ValueError):
    """A certificate, key or folder that cannot be used, in the user's words."""

"""Who may talk to whom: certificates and their roles, TLS on both ends, and what each role may call.

A certificate's subject alternative names hold its role and name as a URI (``nhop://coordinator/alice``)
beside the names and addresses of its host. A TLS folder holds three files: ``ca.crt`` (whose
certificates are trusted), ``tls.crt`` and ``tls.key`` (our own). See docs/security.md.
"""

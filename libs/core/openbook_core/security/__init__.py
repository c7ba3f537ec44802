"""TLS and bearer tokens, the same for every service and client.

`options` are the settings, `tls` and `tokens` what a server does with them, `dial` what a client does.
"""

"""Certificates and tokens for tests, made anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

from openbook_core.security.dial import Dial
from openbook_core.security.options import Protection
from openbook_core.security.tls import ServerTls
from openbook_core.security.tokens import TokenFile, add_token


@dataclass
class Files:
    """In `folder`: ca.pem, server.pem and server.key for `hosts`, client.pem and client.key, tokens.jsonl.

    `read`, `admin` and `both` are tokens with these scopes, each also in a file of its name.
    """

    folder: Path
    ca: trustme.CA
    read: str
    admin: str
    both: str

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def server_tls(self) -> dict[str, Path]:
        return {"tls_certificate": self.path("server.pem"), "tls_key": self.path("server.key")}

    @property
    def client_tls(self) -> dict[str, Path]:
        return {
            "tls_ca": self.path("ca.pem"),
            "tls_certificate": self.path("client.pem"),
            "tls_key": self.path("client.key"),
        }

    def protection(self, *, mutual: bool = False, tokens: bool = False) -> Protection:
        tls = ServerTls(self.path("server.pem"), self.path("server.key"), self.path("ca.pem") if mutual else None)
        return Protection(tls, TokenFile(self.path("tokens.jsonl")) if tokens else None)

    def dial(self, token: str = "") -> Dial:
        return Dial(**self.client_tls, token=token)  # type: ignore[arg-type]

    def issue(self, name: str, *hosts: str) -> None:
        """Write a certificate of the CA and its key, NAME.pem and NAME.key."""
        made = self.ca.issue_cert(*hosts)
        self.path(f"{name}.key").write_bytes(made.private_key_pem.bytes())
        self.path(f"{name}.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))


def make_files(folder: Path, *hosts: str) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {
        name: add_token(folder / "tokens.jsonl", name, scopes)
        for name, scopes in (("read", ["read"]), ("admin", ["admin"]), ("both", ["read", "admin"]))
    }
    files = Files(folder, trustme.CA(), **tokens)
    files.path("ca.pem").write_bytes(files.ca.cert_pem.bytes())
    files.issue("server", *(hosts or ("127.0.0.1", "localhost")))
    files.issue("client", "client.test")
    for name, token in tokens.items():
        files.path(name).write_text(f"{token}\n")
    return files

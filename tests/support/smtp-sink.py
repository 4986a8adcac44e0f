"""A real SMTP server for tests: every mail it takes becomes one line of JSON.

    smtp-sink.py MAILS [--cert FILE --key FILE] [--user U --password P] [--answer 'CODE TEXT' ...]

Prints its port. Each --answer is what one mail gets instead of being taken,
in this order; after them mails are taken. Ends when its standard input does.
"""

import argparse
import email
import email.policy
import json
import logging
import socket
import ssl
import sys
import warnings

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword


def main():
    options = argparse.ArgumentParser()
    options.add_argument("mails")
    options.add_argument("--cert")
    options.add_argument("--key")
    options.add_argument("--implicit", action="store_true", help="TLS from the first byte")
    options.add_argument("--user")
    options.add_argument("--password")
    options.add_argument("--answer", action="append", default=[])
    options = options.parse_args()

    class Sink:
        async def handle_DATA(self, server, session, envelope):
            if options.answer:
                return options.answer.pop(0)
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            parts = {part.get_content_type(): part.get_content() for part in mail.walk() if not part.is_multipart()}
            record = {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "headers": [[name, str(value)] for name, value in mail.items()],
                "structure": [part.get_content_type() for part in mail.walk()],
                "text": parts.get("text/plain"),
                "html": parts.get("text/html"),
                "tls": session.ssl is not None or options.implicit,
            }
            with open(options.mails, "a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
            return "250 taken"

    def authenticate(server, session, envelope, mechanism, data):
        given = isinstance(data, LoginPassword) and (data.login.decode(), data.password.decode())
        return AuthResult(success=given == (options.user, options.password), handled=False)

    # That it warns of passwords without TLS is the point of some tests.
    warnings.simplefilter("ignore")
    logging.getLogger("mail").setLevel(logging.CRITICAL)
    settings = {}
    if options.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert, options.key)
        if options.implicit:
            settings["ssl_context"] = context
        else:
            settings.update(tls_context=context, require_starttls=True)
    if options.user:
        settings.update(authenticator=authenticate, auth_required=True, auth_require_tls=bool(options.cert) and not options.implicit)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(Sink(), hostname="127.0.0.1", port=port, **settings)
    controller.start()
    print(port, flush=True)
    sys.stdin.read()
    controller.stop()


main()

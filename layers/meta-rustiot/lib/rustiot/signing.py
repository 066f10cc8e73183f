#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Which keys a build may use. Keys live outside the tree; the development CA never signs or trusts a product."""

import base64
import json
import os
import re

from rustiot.problem import Problem

# The subject that the development CA has (rust/crates/rustiot-image/src/keys.rs); it stands in the certificate as is.
DEVELOPMENT = b"RustIoT development"
CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
MAKE = "make the development keys with scripts/make-dev-keys, or name your own (docs/yocto.md, Keys)"


def is_token(name):
    """Whether `name` is a PKCS#11 URI and not a file."""
    return name.startswith("pkcs11:")


def certificates(text, name):
    """The certificates of a PEM text, as DER."""
    found = [base64.b64decode("".join(body.split())) for body in CERTIFICATE.findall(text)]
    if not found:
        raise Problem("%s holds no certificate in PEM format; %s" % (name, MAKE))
    return found


def check(production, keyring, certificate, key):
    """Refuses what is missing, and in production all that comes from the development CA. Gives the files to watch."""
    for variable, name in (("RUSTIOT_KEYRING", keyring), ("RUSTIOT_SIGNING_CERT", certificate), ("RUSTIOT_SIGNING_KEY", key)):
        if not name:
            raise Problem("%s is not set; %s" % (variable, MAKE))
        if not is_token(name) and not os.path.isfile(name):
            raise Problem("%s: there is no file %s; %s" % (variable, name, MAKE))
    if is_token(keyring):
        raise Problem("RUSTIOT_KEYRING must be a file, for it goes into the image; export the certificates from the token")
    for variable, name in (("RUSTIOT_KEYRING", keyring), ("RUSTIOT_SIGNING_CERT", certificate)):
        if is_token(name):
            continue
        with open(name, encoding="utf-8", errors="replace") as file:
            found = certificates(file.read(), name)
        if production and any(DEVELOPMENT in der for der in found):
            raise Problem(
                "RUSTIOT_PRODUCTION is set, and %s (%s) holds a certificate of the development CA, whose key is on every"
                " developer's disk; name the product's own (docs/yocto.md, Keys)" % (variable, name)
            )
    if production and os.path.basename(key).startswith("dev-"):
        raise Problem("RUSTIOT_PRODUCTION is set, and RUSTIOT_SIGNING_KEY (%s) is a development key" % key)
    return [name for name in (keyring, certificate, key) if not is_token(name)]


def check_repository_root(name):
    """Refuses a file that is no root metadata of TUF (specification 1.0.0, section 4.3). An empty name is none."""
    if not name:
        return
    remedy = "name metadata/N.root.json of the repository (docs/guide-rollout.md), or nothing"
    try:
        with open(name, encoding="utf-8") as file:
            signed = json.load(file).get("signed", {})
    except (OSError, ValueError, AttributeError) as error:
        raise Problem("RUSTIOT_REPOSITORY_ROOT: %s cannot be read as JSON (%s); %s" % (name, error, remedy)) from error
    if not isinstance(signed, dict) or signed.get("_type") != "root":
        raise Problem("RUSTIOT_REPOSITORY_ROOT: %s is no root metadata; %s" % (name, remedy))

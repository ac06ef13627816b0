"""A relay that attacks: it is built from the real one, and owns every hop key, every socket and the device registry.

`relay` is that relay, and a `Plot` what it does; `stage` the real roles that it attacks, with an app and a target; `verdict` what
must hold whatever it does. docs/spec/proofs.md lists the attacks.
"""

"""The hostile suite: a malicious coordinator and malicious sites, as programs that speak parcels.

What a new feature of private training has to pass is `test_membership.py`. The game itself is
`simulations/privacy/membership`, for the audit of a site plays it, too.
"""

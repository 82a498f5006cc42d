"""What server, client and simulations share.

Never here: an import of theirs, data of patients, or Flower.
"""

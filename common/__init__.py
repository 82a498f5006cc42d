"""What server, client and simulations share. Imports none of them."""

"""Keys, certificates and identities of devices and servers."""

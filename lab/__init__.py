"""The local lab: two libvirt hosts, guests that really boot, a key server. For trying and testing only."""

"""Users who are known elsewhere, to an OpenID provider or an LDAP directory. Off unless it is configured."""

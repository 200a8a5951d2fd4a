"""The console as an appliance: where its history goes. Layered inside as the apps are (docs/architecture.md)."""

"""Procedural blood smears, photographed through simulated devices."""

"""Conditions during the samples: load, clocks, power, temperature."""

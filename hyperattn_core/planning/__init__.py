"""Plans: what attends to what, drawn and sorted before anything is attended."""

"""What a circuit is: nodes and edges, the graph they come from, and how it is saved, compared and drawn."""

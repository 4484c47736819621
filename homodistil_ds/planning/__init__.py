"""What a run takes before it is begun: memory, traffic, time, cost. Functions of its configuration; it runs nothing."""

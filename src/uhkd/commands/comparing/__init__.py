"""Implementation of `compare`: pairs x methods x seeds in one resumable queue, one table, and the cost of a step."""

"""What a step costs: from a batch's shape to seconds. Nothing here knows a request, a queue or a clock."""

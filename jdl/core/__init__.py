"""What trains: a learner is a few pure functions, transforms take one and return one, metrics merge exactly."""

"""What all processes of the project have in common."""

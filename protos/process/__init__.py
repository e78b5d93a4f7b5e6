"""What every process of the project does alike."""

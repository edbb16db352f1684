"""What a configuration costs (`plan`) and how fast it runs (`speed`)."""

"""What an evaluation found: its typed form, its files, and the card that is made of it."""

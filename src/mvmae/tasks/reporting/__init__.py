"""What `report` is made of: facts from run folders, in words, charts, tables and pictures."""

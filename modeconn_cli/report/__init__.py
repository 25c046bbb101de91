"""What people look at, made from the files of finished runs."""

"""What tests share: processes, small runs, and files made for them."""

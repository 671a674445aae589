"""An audit of your own labels, in a CSV file or a folder of images, without programming."""

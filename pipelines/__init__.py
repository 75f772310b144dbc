"""From a folder of photographs and a table of labels to batches on the device."""

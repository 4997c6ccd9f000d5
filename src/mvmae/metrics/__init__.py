"""Numbers that say how good something is: functions of tensors and arrays."""

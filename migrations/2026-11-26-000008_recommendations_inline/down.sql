ALTER TABLE recommendations RESET (toast_tuple_target);

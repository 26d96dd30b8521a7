"""What a family costs and gives, beside separate runs that are tuned as well."""

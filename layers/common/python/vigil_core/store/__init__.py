"""The only access to DynamoDB. docs/data_model.md lists the rows, the access patterns and their costs."""

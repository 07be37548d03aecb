"""The only place that knows DynamoDB. docs/data_model.md lists the rows, the access patterns and what each costs."""

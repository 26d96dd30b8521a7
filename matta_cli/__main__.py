from matta_cli.main import main

main()
